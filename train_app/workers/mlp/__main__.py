import sys

from train_app.workers.mlp.worker import main

sys.exit(main(sys.argv[1:]))
