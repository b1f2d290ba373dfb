import sys

from train_app.workers.sft.worker import main

sys.exit(main(sys.argv[1:]))
