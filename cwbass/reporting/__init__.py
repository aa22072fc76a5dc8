"""The report of a run: one HTML file that opens offline, without scripts, in a sandboxed frame.

html      everything below -> page (report.html.j2, report.css)
scores    metrics.json -> verdict, tiles, tables
curves    history -> charts
findings  history -> what deserves a second look
gallery   arrays -> pictures of one image, side by side
charts    numbers -> inline SVG (svg: its building blocks)
images    arrays -> data URIs
"""
