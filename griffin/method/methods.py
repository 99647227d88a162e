"""All methods by name. To add one, write a class of ``interface.Method`` and add a row here."""

from griffin.method.griffin import Griffin
from griffin.method.griffin_plus import GriffinPlus
from griffin.method.interface import Method
from griffin.request import MethodName

METHODS: dict[MethodName, type[Method]] = {row.name: row for row in (Griffin, GriffinPlus)}
