"""Attributes that are replaced for a while come back as they were."""

from __future__ import annotations

from moetool.simulation.meta.replaced import replaced


class Holder:
    @staticmethod
    def add(first: int, second: int) -> int:
        return first + second

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    def itself(self) -> Holder:
        return self


def test_methods_of_each_kind_come_back_as_such() -> None:
    before = {name: vars(Holder)[name] for name in ("add", "name", "itself")}
    with replaced(Holder, dict.fromkeys((*before, "new"), None)):
        assert vars(Holder)["add"] is None
    assert {name: vars(Holder)[name] for name in before} == before
    assert not hasattr(Holder, "new")
    holder = Holder()
    assert holder.add(1, 2) == 3
    assert holder.name() == "Holder"
    assert holder.itself() is holder


def test_an_instance_gets_its_method_back() -> None:
    holder = Holder()
    with replaced(holder, {"itself": lambda: None}):
        assert holder.itself() is None
    assert holder.itself() is holder
