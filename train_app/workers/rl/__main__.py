import sys

from train_app.workers.rl.worker import main

sys.exit(main(sys.argv[1:]))
