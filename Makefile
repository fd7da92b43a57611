# A shorter spelling of tools/go.py, which does the work and needs no make.
#   make demo ARGS="--rounds 5"    make test ARGS="-k floors"    make test CPU=1    make test PYTHON=python3.12
PYTHON ?= $(shell command -v python3 || echo python)

.DEFAULT_GOAL := help
.PHONY: demo test test-all lint clean help

demo test test-all lint clean:
	@$(PYTHON) tools/go.py $@ $(if $(CPU),--cpu) $(if $(ARGS),-- $(ARGS))

help:
	@$(PYTHON) tools/go.py --help
