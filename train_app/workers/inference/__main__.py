import sys

from train_app.workers.inference.worker import main

sys.exit(main(sys.argv[1:]))
