package worker

import _ "github.com/pressly/goose/v3"
