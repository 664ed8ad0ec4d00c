"""The contracts of cells, logit transforms and tasks, for your own ones too: ``check_cell(MyCell)``."""

from jaxgen.testing.cells import OverTime as OverTime
from jaxgen.testing.cells import check_cell as check_cell
from jaxgen.testing.tasks import Case as Case
from jaxgen.testing.tasks import Examples as Examples
from jaxgen.testing.tasks import check_task as check_task
from jaxgen.testing.transforms import check_transform as check_transform
