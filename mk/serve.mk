# make serve: the page and the API on MODEL_DIR (and ADAPTER, RAG), until Ctrl-C.
.PHONY: serve
MODEL_DIR ?= models/demo
serve: all
	@$(B)/bin/serve --model $(MODEL_DIR) $(if $(ADAPTER),--adapter $(ADAPTER)) $(if $(RAG),--rag $(RAG) --encoder $(ENCODER)) $(if $(PORT),--port $(PORT))

# The page is part of the program (see infer/serve.c).
$(O)/infer/serve.o: infer/serve.html lib/view3d.js
