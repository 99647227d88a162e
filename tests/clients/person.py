"""The object that scripts of clients ask for. They import it in an environment of their own."""

from typing import Literal

from pydantic import BaseModel


class Home(BaseModel):
    """Where a person lives."""

    city: Literal["Paris", "Rome"]


class Person(BaseModel):
    """A person, and where they live."""

    name: Literal["Ann", "Bob"]
    age: int
    home: Home


SENTENCE = "Ann (31) lives in Rome. Describe her in JSON."
