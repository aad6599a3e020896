# make demo: an image in, boxes out.   make test: every test that can run.   Both make $(VENV) and install what they need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test clean

demo: $(VENV)/demo-installed
	$(BIN)/onnx-vlm export tests/checkpoints/emoji demo/bundle --overwrite
	$(BIN)/onnx-vlm generate demo/bundle "detect cat ; car" --image docs/emoji.jpg --draw demo/boxes.png
	$(BIN)/onnx-vlm generate demo/bundle "caption" --image docs/emoji.jpg
	@echo "Now look at demo/boxes.png"

test: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

$(VENV)/demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export]'
	@touch $@

$(VENV)/test-installed: $(VENV)/demo-installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,export,test]'
	@touch $@

clean:
	rm -rf .venv demo build *.egg-info
