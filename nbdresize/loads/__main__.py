"""`python -m nbdresize.loads`: what batch.run starts."""

import sys

from nbdresize.loads.team import main

sys.exit(main())
