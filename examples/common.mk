# What the examples share: the compiled model, a photograph of the size that it takes, and the names of its classes.
# Give MODEL=..., PHOTO=... for others, and MINIFER=..., PYTHON=... where they are not on the path.

.DEFAULT_GOAL := run
.PHONY: run clean
.DELETE_ON_ERROR:

HERE := $(dir $(lastword $(MAKEFILE_LIST)))
MODEL ?= $(HERE)../models/efficientnet_lite0.onnx
PHOTO ?= $(HERE)../models/chelsea.png
MINIFER ?= minifer
PYTHON ?= python3

COMPILE = $(MINIFER) compile $(MODEL) --target $(TARGET) --name classifier --out build

# 224 x 224 pixels, cut and scaled as the model was trained, in a format that needs no library to be read
CUT = import sys; from PIL import Image; from minifer.pipelines.image import Preprocessing, load_image; \
    Image.fromarray(Preprocessing().crop_and_resize(load_image(sys.argv[1]))).save(sys.argv[2])

build/photo.ppm: $(PHOTO)
	mkdir -p build
	$(PYTHON) -c "$(CUT)" $(PHOTO) $@

build/labels.json:
	mkdir -p build
	$(PYTHON) -c "import json, minifer.models as m; print(json.dumps(m.imagenet_labels()))" > $@

build/labels.txt:
	mkdir -p build
	$(PYTHON) -c "import minifer.models as m; print('\n'.join(m.imagenet_labels()))" > $@
