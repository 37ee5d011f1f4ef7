package pgqueue

// A Statement is one that moves messages.
type Statement struct {
	Name    string
	SQL     string
	Args    string   // an example of its arguments, as EXECUTE takes them
	Indexes []string // by which its plan reaches the rows
}

// PlannerSettings is the statement that a Queue runs before those of [Statements], in the
// same transaction.
const PlannerSettings = plansSQL

// Statements lists the statements that move messages, for diagnosis: a tool can ask the
// server for their plans. None of them is meant to be run by anybody else.
func Statements() []Statement {
	ready, message := []string{"message_ready"}, []string{"message_pkey"}
	return []Statement{
		{"receive", claimAllSQL, `'', (-32768)::smallint, 0, 100, 1000`, ready},
		{"receive types", claimTypesSQL, `'', 0::smallint, 7, 100, 1000, '{t}'`, ready},
		{"wake delayed", wakeDelayedSQL, `'', '-infinity', 100`, []string{"message_delayed"}},
		{"wake lapsed", wakeLapsedSQL, `'', '-infinity', 100`, []string{"message_receive_check", "message_pkey"}},
		{"acknowledge", ackSQL, `'{1,2,3}', 1`, message},
		{"extend", extendSQL, `'{1,2,3}', 1, 1000`, message},
		{"release", releaseSQL, `'{1,2,3}', 1, 1000`, message},
	}
}
