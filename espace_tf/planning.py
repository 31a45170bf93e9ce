"""plan(): the plan that reaches a speed at least loss.

Imports neither TensorFlow nor Keras: a saved Analysis can be planned on any machine.
"""

from espace_tf.plans import LayerPlan, Plan, SummaryRow

__all__ = ["LayerPlan", "Plan", "SummaryRow"]
