package ledger

// A Statement is one that runs for every delivery.
type Statement struct {
	Name    string
	SQL     string
	Args    string   // an example of its arguments, as EXECUTE takes them
	Indexes []string // by which its plan reaches the rows; none: it only adds some
}

// PlannerSettings is the statement that the ledger runs before those of [Statements], in
// the same transaction: they reach their rows by primary key, also where the planner takes a table
// for empty. It is for whoever reads claims and facts of many named entities, too.
const PlannerSettings = steadyPlans

// Statements lists the statements that reach the claim table or the ledger for every
// delivery, for diagnosis: a tool can ask the server for their plans. None of them is
// meant to be run by anybody else.
func Statements() []Statement {
	claim, fact := []string{"claim_pkey"}, []string{"ledger_pkey"}
	return []Statement{
		{"facts", factsSQL, `1, '{a,b}'`, fact},
		{"opens", opensOfSQL, `1, '{a,b}'`, append(claim, "worker_pkey")},
		{"first fact", firstFactSQL, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}'`, nil},
		{"first fact alike", alikeFactSQL, `1, NULL, '{a,b}', '{1,1}', 1, 0, 0, 114`, nil},
		{"or nothing", firstFactSQL + doNothing, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}'`, nil},
		{"claim", insertClaimSQL, `1, 1, '{a,b}', '{0,0}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{x,x}'`, nil},
		{"takeover", takeoverSQL, `1, 1, '{a,b}', '{1,2}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{x,x}'`, claim},
		{"give back", giveBackSQL, `1, 1, '{a,b}', '{0,0}'`, append(claim, "ledger_pkey")},
		{"drop", dropSQL, `1, '{a,b}', '{1,2}'`, claim},
		{"complete", completeSQL, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}', '{1,2}', '{0,0}'`, claim},
		{"complete new", completeNewSQL, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}', '{1,2}', '{0,0}'`, claim},
		{"end", endSQL, `1, '{a,b}', '{1,2}'`, claim},
		{"keep open", keepOpenSQL, `1, '{a,b}', '{1,2}', '{retrying,retrying}', '{1s,1s}', '{f,f}', '{e,e}', '{1,1}', 1`, claim},
		{"open", openSQL, `1, '{a,b}', '{retrying,retrying}', '{1s,1s}', '{e,e}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{1,1}', '{x,x}'`, nil},
		{"awaited", awaitedSQL, `'{n,n}', '{a,b}'`, append(append(fact, "claim_pkey"), "worker_pkey", "result_pkey")},
		{"keep result", keepResultSQL, `1, '{a,b}', '{x,x}', '1s'`, fact},
		{"absent", absentSQL, `1, '{a,b}', '{1,2}'`, claim},
	}
}
