"""A fair comparison: methods x seeds x labels on one budget, and what may be said of it.

variants    what is compared: methods, or cw_bass with terms switched off
budget      how many steps each may take
plan        the grid and its cells; one file that names a comparison
run         commands of one cell, in processes of their own
results     what the cells left behind, refused where it cannot be set side by side
statistics  intervals over seeds, and the paired bootstrap over images
pairs       differences between any two variants
table       results -> numbers, as JSON
sheets      numbers -> text, and Markdown
exports     numbers -> LaTeX; results -> CSV, a row for each run
page        numbers -> one HTML page (reporting/compare.html.j2)
"""
