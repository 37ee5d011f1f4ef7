// Command oncemore looks after the jobs of a database: `oncemore help` says how.
//
// An application that wants the same commands with its own jobs imports
// [github.com/oncemore-jobs/oncemore/cmd/oncemore/cli] in a program of its own.
package main

import (
	"os"
	_ "time/tzdata" // schedules have zones, and a small container has none

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
)

func main() { os.Exit(cli.Execute(cli.New(cli.Options{}))) }
