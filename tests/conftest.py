from __future__ import annotations

import os

from fake_s3 import s3
from hypothesis import settings
from killing import killed_at
from servers import link, retries_at_once, s3_server
from stores import any_store, plugin_objects, s3_env, s3_location
from tiny import shapes, tiny_run

from cwbass.plugins import VARIABLE, load_plugins

__all__ = [
    "any_store",
    "killed_at",
    "link",
    "plugin_objects",
    "retries_at_once",
    "s3",
    "s3_env",
    "s3_location",
    "s3_server",
    "shapes",
    "tiny_run",
]

# What is asked of every method is then asked of a plugin's, too.
if os.environ.get(VARIABLE):
    load_plugins()

# The same examples at every run, so that a change is not blamed for luck; --hypothesis-profile=default draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
