"""The scripts' own modules are found as the scripts find them: beside themselves."""

import sys

from study.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
