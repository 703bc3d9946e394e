"""The layout that needs the least memory, by mesh_tensorflow.auto_mtf: an integer program.

Its model is of memory alone: it knows nothing of communication.
"""

from configs import layouts
from configs.errors import UserError
from mesh.compat import auto_mtf, mtf

ABSENT = ("the solver of mtf.auto_mtf is not installed; pip install -r requirements-layouts.txt")


def check_installed(flag):
    """Refuses where ortools is not installed.

    Raises:
      UserError: names the flag, and says how to get it.
    """
    try:
        import ortools.sat.python.cp_model  # noqa: F401
    except ImportError as error:
        raise UserError(f"{flag}: {ABSENT}") from error


def choose(graph, outputs, mesh, allowed):
    """The best layout of a graph on a mesh.

    Args:
      graph: an mtf.Graph. outputs: mtf tensors that are kept to its end.
      mesh: [(axis, size)].
      allowed: {dimension: {axis: why not, or None}}; see configs.layout_choices.by_dimension.

    Returns:
      (rules, bytes): [(dimension, axis)], and the memory of a core at the graph's peak.

    Raises:
      UserError: the solver found nothing.
    """
    layout_optimizer, memory_estimator = auto_mtf()

    class Optimizer(layout_optimizer.LayoutOptimizer):
        """With our own rules besides: of a dimension, and of two dimensions of one tensor."""

        def _add_constraints(self):
            super()._add_constraints()
            for (name, axis), chosen in self._global_vars.items():
                if allowed.get(name, {}).get(axis, "no rule") is not None:
                    self._model.Add(chosen == 0)
            for dims in layouts.TENSORS.values():
                for axis, _ in mesh:
                    both = [self._global_vars[name, axis] for name in dims
                            if (name, axis) in self._global_vars]
                    if len(both) > 1:
                        self._model.Add(sum(both) <= 1)

    shape = mtf.Shape([mtf.Dimension(name, size) for name, size in mesh])
    optimizer = Optimizer(memory_estimator.MemoryEstimator(graph, shape, outputs))
    try:
        found = optimizer.solve()
    except layout_optimizer.SolverError as error:
        raise UserError(f"mtf.auto_mtf found no layout for {layouts.pairs_text(mesh)} "
                        f"({error})") from error
    rules = sorted(layouts.parse_layout(found.replace(";", ",")),
                   key=lambda rule: list(layouts.DIMENSIONS).index(rule[0]))
    return rules, optimizer.evaluate_layout(found)
