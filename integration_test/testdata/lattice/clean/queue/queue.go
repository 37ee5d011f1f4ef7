package queue

import _ "log/slog"
