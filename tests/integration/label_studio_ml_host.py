"""What users of label-studio-ml 1.0.9 write as `_wsgi.py`; takes a port and a model folder."""

import sys

from label_studio_ml.api import init_app

from backend.sdk import ClipBackend

# Release 1.0.9 starts a process for each webhook, which imports this file again.
if __name__ == "__main__":
    app = init_app(model_class=ClipBackend, model_dir=sys.argv[2])
    app.run("127.0.0.1", int(sys.argv[1]))
