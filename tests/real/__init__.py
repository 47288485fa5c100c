"""Every quirk of real checkpoints: a file that has it, taken through the commands.

Files in the wild were looked at one by one (some forty published weights of 2018 to 2026); each line of what was seen
has a test here, or a comment that names the test which holds it. The oracles are torch and safetensors.
"""

import pytest

pytest.register_assert_rewrite("tests.real.checks")  # as in a test: a failure shows the values
