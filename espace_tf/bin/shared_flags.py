"""Flags that several commands take: what each of them means is said here, once.

A command names those that it takes (`Command.flags`); given to another one they are an error.
"""

from absl import flags

from espace_tf.checks import MOST_SEED, MOST_THREADS
from espace_tf.config import RUNTIMES

# The model.
MODEL = flags.DEFINE_string(
    "model", None, "The network: a .keras, .h5 or .hdf5 file, or the folder of a SavedModel."
)
ORIGINAL = flags.DEFINE_string(
    "original", None, "The network that --model was compressed from: a file or folder."
)

# The data.
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "An .npz file, a folder of idx files, folder:PATH with images in one folder a class, or the "
    "name of a prepared TensorFlow Dataset, NAME[/CONFIG][:VERSION].",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets are; default: its own, see TFDS_DATA_DIR."
)
DOWNLOAD = flags.DEFINE_bool("download", False, "Download and prepare a TensorFlow Dataset.")
TRAIN_SPLIT = flags.DEFINE_string(
    "train_split", "train", "What is trained on and analysed: train, train[:90%], train[100:]+b."
)
TEST_SPLIT = flags.DEFINE_string(
    "test_split",
    None,
    "What is judged on, held out from training; default: validation or test if there is one.",
)
PREPROCESSING = flags.DEFINE_string(
    "preprocessing",
    "auto",
    "Values of 8-bit images: none, scale ([0, 1]), symmetric ([-1, 1]), mean_std or caffe (of "
    "ImageNet), auto (as the network suggests). imagenet: crops of the network's size as well, "
    "random and flipped for training, with auto; imagenet+caffe: with values by name.",
)
SHUFFLE_BUFFER = flags.DEFINE_integer(
    "shuffle_buffer", 10_000, "Examples of a stream to draw from; at most 256 MB of them.", 1
)

# Training.
EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over the training data.", 0)
TRAIN_BATCH = flags.DEFINE_integer("train_batch_size", 32, "Images per step of training.", 1)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer",
    "auto",
    ["auto", "adam", "adamw", "sgd", "rmsprop"],
    "auto: Adam at a learning rate that is found; sgd has a momentum of .9.",
)
RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "At its highest: a warm-up, then a cosine to 0. For a named optimizer.",
    0,
)
DECAY = flags.DEFINE_float("weight_decay", None, "Of a named optimizer.", 0)
KEEP_BEST = flags.DEFINE_bool(
    "keep_best", None, "Keep the weights that judged best; default: in fine_tune only."
)
CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 100, "Steps between two checkpoints, from which a killed run goes on.", 1
)
STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored", "multi_worker"],
    "One device; all GPUs of this machine; several machines, as TF_CONFIG says.",
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "mixed_float16", "mixed_bfloat16"],
    "What training computes in. What is saved computes as before.",
)

# What is timed, and what is written.
RUNTIME = flags.DEFINE_enum(
    "runtime", "tf", list(RUNTIMES), "What must be fast: TensorFlow, LiteRT (TFLite), ..."
)
BATCH = flags.DEFINE_integer("batch_size", 1, "Images per call when time is measured.", 1)
FORMATS = flags.DEFINE_list(
    "formats",
    ["float32"],
    "Files to write: float32, float16, dynamic, int8, full_int8 (TensorFlow Lite), saved_model, "
    "onnx.",
)

# Every command.
flags.DEFINE_string("output_dir", None, "Where results go; made if it is not there.")
flags.DEFINE_bool("overwrite", False, "Replace the results that are there.")
flags.DEFINE_bool("dry_run", False, "Say what would be done; write nothing.")
THREADS = flags.DEFINE_integer(
    "threads", None, "CPU threads; default: all that there are.", 1, MOST_THREADS
)
SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", 0, MOST_SEED)

COMMON = ("output_dir", "overwrite", "dry_run", "threads", "seed")
DATA = ("dataset", "data_dir", "download", "preprocessing", "test_split")
STREAMS = ("train_split", "shuffle_buffer", "train_batch_size")
TRAINING = (
    *("epochs", "optimizer", "learning_rate", "weight_decay", "keep_best"),
    *("checkpoint_every", "precision"),
)
TIMING = ("runtime", "batch_size")


def check_training(*, needs_epochs: bool = False) -> None:
    """Raises ValueError for flags of training that do not go together."""
    if EPOCHS.value == 0 and needs_epochs:
        raise ValueError("--epochs must be at least 1. Received: 0")
    if OPTIMIZER.value == "auto":
        for flag in (RATE, DECAY):
            if flag.value is not None:
                raise ValueError(f"--{flag.name} needs a named --optimizer, such as adam")
    elif RATE.value is None:
        raise ValueError(f"--optimizer={OPTIMIZER.value} needs --learning_rate")
