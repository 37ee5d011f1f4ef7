package mutants

// doorMutants are those of requests: make mutants MUTANT=door.
var doorMutants = []mutant{
	{
		lacks: "the answer beside the fact at the door",
		file:  "ledger/ledgerhttp/transact.go",
		old:   `	err := tx.commit(ctx, func(b *pgx.Batch) { g.queueStore(b, req.want, a) })`,
		new:   `	err := tx.commit(ctx, func(*pgx.Batch) {})`,
		tests: "./ledger/ledgerhttp IsAnsweredWithWhatItWas",
	}, {
		lacks: "the caller in the key at the door",
		file:  "ledger/ledgerhttp/key.go",
		old:   `part(scope, 200)`,
		new:   `part("", len(scope))`,
		tests: "./ledger/ledgerhttp OfAnotherCaller|IdentityOfOthers",
	}, {
		lacks: "the fingerprint at the door",
		file:  "ledger/ledgerhttp/serve.go",
		old:   `Fingerprint: g.op.Fingerprint.of(r, body)}`,
		new:   `Fingerprint: 0 * g.op.Fingerprint.of(r, body)}`,
		tests: "./ledger/ledgerhttp WithAnotherRequestIsRefused",
	}, {
		lacks: "the rollback of what a refusal wrote at the door",
		file:  "ledger/ledgerhttp/transact.go",
		old: `		tx.rollback()
		return g.keepRefusal(req, a)`,
		new:   `		return g.commit(req, tx, a)`,
		tests: "./ledger/ledgerhttp A4xxIsStored",
	}, {
		lacks: "the end of a lent transaction at the door",
		file:  "ledger/ledgerhttp/tx.go",
		old:   `	if l.ended.Load() {`,
		new:   `	if l.ended.Load() && false {`,
		tests: "./ledger/ledgerhttp TransactionEndsWithItsHandler",
	}, {
		lacks: "the difference between a twin and a crowd at the door",
		file:  "ledger/ledgerhttp/tx.go",
		old:   `ledger.IsBusy(err) && overARow(err):`,
		new:   `ledger.IsBusy(err) && (overARow(err) || true):`,
		tests: "./ledger/ledgerhttp TableThatIsLocked",
	}, {
		lacks: "the privacy of the status page at the door",
		file:  "ledger/ledgerhttp/status.go",
		old:   `entityOf(asked.Get("method"), scope, key)`,
		new:   `entityOf(asked.Get("method"), "anna"+scope[:0], key)`,
		tests: "./ledger/ledgerhttp StatusPageTells",
	}, {
		lacks: "a doubt that is recorded before it is told at the door",
		file:  "ledger/ledgerhttp/outside.go",
		old:   `err != nil || !listed {`,
		new:   `err != nil && !listed { // mutant`,
		tests: "./ledger/ledgerhttp LateCommit",
	}, {
		lacks: "the lease beside the hand at the door",
		file:  "ledger/ledgerhttp/outside.go",
		old:   `!g.holds(h) && lease.Context().Err() == nil {`,
		new:   `!g.holds(h) {`,
		tests: "./ledger/ledgerhttp IsNotTakenForARequest",
	}, {
		lacks: "the sweep of moot claims at the door",
		file:  "ledger/ledgerhttp/tidy.go",
		old:   `	if len(kinds) > 0 {`,
		new:   `	if len(kinds) > 1000 {`,
		tests: "./ledger/ledgerhttp DeadLeftBeside",
	}, {
		lacks: "the last look at the lease at the door",
		file:  "ledger/ledgerhttp/outside.go",
		old:   `	case ctx.Err() != nil || !at.lease.Alive():`,
		new:   `	case false:`,
		tests: "./ledger/ledgerhttp DuringWhichTheLeaseHasEnded",
	}, {
		lacks: "the difference between silence and success at the door",
		file:  "ledger/ledgerhttp/serve.go",
		old:   `	if rec.status == 0 && ctx.Err() != nil {`,
		new:   `	if false {`,
		tests: "./ledger/ledgerhttp CutOffAndSaysNothing",
	},
}

func init() { mutants = append(mutants, doorMutants...) }
