"""Networks that ESPACE is measured on and keras.applications lacks, as stock Keras models."""

from espace_tf.zoo.alexnet import alexnet
from espace_tf.zoo.googlenet import googlenet
from espace_tf.zoo.resnet import resnet
from espace_tf.zoo.squeezenet import squeezenet

__all__ = ["alexnet", "googlenet", "resnet", "squeezenet"]
