"""Print what pyproject.toml asks for, one a line: so an image's layer of dependencies outlives changes of the code.

python deploy/requirements.py               what router, command line and catalog need
python deploy/requirements.py node          what that extra needs beside it
python deploy/requirements.py node torch    of that extra, only the packages named
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
wanted = project["optional-dependencies"][sys.argv[1]] if sys.argv[1:] else project["dependencies"]
named = sys.argv[2:]
print("\n".join(each for each in wanted if not named or re.split(r"[\s\[=<>!~]", each)[0] in named))
