package ledger

import "time"

// For the tests, which live outside so that they use what users use.
const SteadyPlans = steadyPlans

// A HotStatement is one that runs for every delivery, and sample arguments for it.
type HotStatement struct{ SQL, Args string }

// HotStatements are all that reach the claim table or the ledger on the hot path.
var HotStatements = map[string]HotStatement{
	"facts":      {factsSQL, `1, '{a,b}'`},
	"opens":      {opensSQL + ` WHERE c.job_type = $1 AND c.entity = ANY ($2)`, `1, '{a,b}'`},
	"first fact": {firstFactSQL, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}'`},
	"or nothing": {firstFactSQL + doNothing, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}'`},
	"claim":      {insertClaimSQL, `1, 1, '{a,b}', '{0,0}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{x,x}'`},
	"takeover":   {takeoverSQL, `1, 1, '{a,b}', '{1,2}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{x,x}'`},
	"drop":       {dropSQL, `1, '{a,b}', '{1,2}'`},
	"complete":   {completeSQL, `1, NULL, '{a,b}', '{1,1}', '{1,1}', '{0,0}', '{0,0}', '{114,114}', '{1,2}', '{0,0}'`},
	"end":        {endSQL, `1, '{a,b}', '{1,2}'`},
	"keep open":  {keepOpenSQL, `1, '{a,b}', '{1,2}', '{retrying,retrying}', '{1s,1s}', '{f,f}', '{e,e}', '{1,1}', 1`},
	"open":       {openSQL, `1, '{a,b}', '{retrying,retrying}', '{1s,1s}', '{e,e}', '{1,1}', '{0,0}', '{0,0}', '{0,0}', '{1,1}', '{x,x}'`},
	"absent":     {absentSQL, `1, 'a', 1`},
}

const (
	RenewSQL   = renewSQL
	DeclareSQL = declareSQL
)

// Since is how long ago a lease believes that a renewal was, which the two clocks show as
// given.
func Since(mono, wall time.Time) time.Duration { return (&moment{mono, wall}).since() }
