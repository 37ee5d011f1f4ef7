package ledger

import "time"

// For the tests, which live outside so that they use what users use.
const SteadyPlans = steadyPlans

// HotStatements are all that reach the claim table or the ledger on the hot path.
var HotStatements = map[string]Statement{}

func init() {
	for _, s := range Statements() {
		HotStatements[s.Name] = s
	}
}

const (
	RenewSQL   = renewSQL
	DeclareSQL = declareSQL
)

// Since is how long ago a lease believes that a renewal was, which the two clocks show as
// given.
func Since(mono, wall time.Time) time.Duration { return (&moment{mono, wall}).since() }
