"""Networks with random weights by name, for benchmarks of speed."""

import keras

from espace_tf import zoo

NETWORKS = ("googlenet", "alexnet", "resnet20", "squeezenet", "mobilenetv2", "resnet50", "vgg16")
_APPLICATIONS = {"resnet50": "ResNet50", "vgg16": "VGG16", "mobilenetv2": "MobileNetV2"}


def build(name: str) -> keras.Model:
    """A network of NETWORKS at its usual size: 224 x 224, ResNet-20 at 32 x 32."""
    keras.utils.set_random_seed(0)
    if name == "resnet20":
        return zoo.resnet(depth=20)
    if name in _APPLICATIONS:
        return getattr(keras.applications, _APPLICATIONS[name])(weights=None)
    return getattr(zoo, name)()
