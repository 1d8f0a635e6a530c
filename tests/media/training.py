"""Options of small runs on clips."""

KINDS = ("--audio", "log-mel", "--video", "face-mesh")
EMOTIONS = ("03", "04", "05", "06", "07", "01")  # of the six classes
SMALL = (
    *("--model.units", "audio=8", "video=8", "--model.head-units", "16"),
    *("--model.head-dropout", "0.3", "--train.epochs", "2", "--train.batch", "8"),
    *("--data.buckets", "1", "--devices", "1"),
)
