package ledger

import _ "log"
