"""Prometheus metrics of a run. See docs/monitoring.md.

with observe("train", TelemetrySettings.from_environment(os.environ), out_dir=out) as telemetry:
    train(params, ..., telemetry=telemetry)
"""

from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.telemetry.session import TelemetrySettings, observe, observe_failure, observe_here

__all__ = ["SILENT", "Telemetry", "TelemetrySettings", "observe", "observe_failure", "observe_here"]
