"""What a run has to show: pages that open offline, and the same in a few lines.

html       everything below -> the report, without scripts (report.html.j2, report.css)
flight     history, probes, sweep -> the flight recorder's page, with one script (flight.html.j2, flight.css, flight.js)
summary    the folder of a report -> Markdown and numbers for a pipeline's UI
scores     metrics.json -> verdict, tiles, tables
curves     history -> charts
findings   history -> what deserves a second look
gallery    arrays -> pictures of one image, side by side
charts     numbers -> inline SVG (svg: its building blocks)
images     arrays -> data URIs
templates  name -> template of a page (page.html.j2 is the frame of all, parts.html.j2 what several show)
"""
