package jobs

import _ "github.com/spf13/cobra"
