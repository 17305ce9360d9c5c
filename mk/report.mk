# The page's script and style are part of the program (see ASSET in eval/report.c).
$(O)/eval/report.o: eval/report.js eval/report.css
