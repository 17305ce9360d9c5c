# The page's script and style are part of the program (see lib/asset.h).
$(O)/eval/report.o: eval/report.js eval/report.css lib/view3d.js
