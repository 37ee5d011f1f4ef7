package mutants

// mutants are what this project promises, turned off one at a time.
var mutants = []mutant{
	{
		lacks: "the fence in a completion",
		file:  "ledger/settle.go",
		old: `                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence FOR UPDATE) c
), gone AS (
    DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(SELECT w.tid FROM w))
), fact AS (`,
		new: `                        WHERE c.job_type = $1 AND c.entity = w.entity FOR UPDATE) c
), gone AS (
    DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(SELECT w.tid FROM w))
), fact AS (`,
		tests: "./ledger LateCompletionByAFencedWorker|ALostFence|SameFences",
	}, {
		lacks: "the fence in a failure",
		file:  "ledger/settle.go",
		old: `    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence FOR UPDATE) c
)
UPDATE oncemore.claim c`,
		new: `    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity FOR UPDATE) c
)
UPDATE oncemore.claim c`,
		tests: "./ledger LateFailureByAFencedWorker",
	}, {
		lacks: "the last look at the horizon, after the ready-check",
		file:  "worker/deliver.go",
		old:   `	return it.kind.Erased.Done == nil && ledger.MustVerify`,
		new:   `	return false && ledger.MustVerify`,
		tests: "./worker AKeyThatIsForgottenDuringTheReadyCheck",
	}, {
		lacks: "the settling time after a failure",
		file:  "ledger/decide.go",
		old:   `	return o.ClaimedAt.Add(t.Effect.Settle())`,
		new:   `	return time.Time{}`,
		tests: "./worker WhatFailedIsNotAskedAbout",
	}, {
		lacks: "the message of a claim that asks for more than the fact",
		file:  "worker/deliver.go",
		old:   `	if st.Carry {`,
		new:   `	if false {`,
		tests: "./worker SatisfiedByLess",
	}, {
		lacks: "the fence in a takeover",
		file:  "ledger/claim.go",
		old:   `WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.seen FOR UPDATE SKIP LOCKED) c`,
		new:   `WHERE c.job_type = $1 AND c.entity = w.entity FOR UPDATE SKIP LOCKED) c`,
		tests: "./ledger AChangedFence|TakeoverAfterAnotherTakeover",
	}, {
		lacks: "a new fence with each failure",
		file:  "ledger/settle.go",
		old:   `SET fence = nextval('oncemore.fence'), owner = NULL,`,
		new:   `SET owner = NULL,`,
		tests: "./ledger EveryChangeOfAClaimDrawsANewFence",
	}, {
		lacks: "the second look of a claim",
		file:  "ledger/claim.go",
		old:   `	if len(facts) == 0 {`,
		new:   `	if true {`,
		tests: "./ledger ClaimAfterACompletion",
	}, {
		lacks: "read committed in a claim",
		file:  "ledger/ledger.go",
		old:   `BEGIN ISOLATION LEVEL READ COMMITTED`,
		new:   `BEGIN ISOLATION LEVEL REPEATABLE READ`,
		tests: "./ledger ClaimDuringACompletion",
	}, {
		lacks: "the rule that a lapsed lease is not a death",
		file:  "ledger/look.go",
		old:   `coalesce(c.owner, 0), w.dead_at, c.claimed_at`,
		new:   `coalesce(c.owner, 0), CASE WHEN w.expires < clock_timestamp() THEN w.expires END, c.claimed_at`,
		tests: "./ledger ATakeoverNeedsADeclaredDeath",
	}, {
		lacks: "the rule that the dead do not renew",
		file:  "ledger/lease.go",
		old:   `expires = clock_timestamp() + $2::interval WHERE id = $1 AND dead_at IS NULL`,
		new:   `expires = clock_timestamp() + $2::interval WHERE id = $1`,
		tests: "./ledger Death|Dead|Renew",
	}, {
		lacks: "the patience to declare others dead only after an unbroken lease",
		file:  "ledger/lease.go",
		old:   `if time.Since(s.unbroken) > s.length {`,
		new:   `if true {`,
		tests: "./ledger Dead|Outage|Lease",
	}, {
		lacks: "the fresh renewal of who declares others dead",
		file:  "ledger/lease.go",
		old:   `me.expires > clock_timestamp() + $2::interval)`,
		new:   `$2::interval IS NOT NULL)`,
		tests: "./ledger Declar",
	}, {
		lacks: "the end of a lease that cannot be renewed",
		file:  "ledger/lease.go",
		old:   `		if left <= 0 {`,
		new:   `		if left <= -time.Hour {`,
		tests: "./ledger ALeaseThatCannotBeRenewedEndsBefore",
	}, {
		lacks: "the wall clock in a lease",
		file:  "ledger/lease.go",
		old:   `return max(time.Since(m.mono), time.Now().Round(0).Sub(m.wall))`,
		new:   `return time.Since(m.mono)`,
		tests: "./ledger I9",
	}, {
		lacks: "the order of locks in a settlement",
		file:  "ledger/settle.go",
		old:   `		return cmp.Or(cmp.Compare(a.Entity, b.Entity), cmp.Compare(a.Fence, b.Fence))`,
		new:   `		return cmp.Compare(0, 0)`,
		tests: "./ledger TwoSettlementsLockInKeyOrder",
	}, {
		lacks: "the order of locks in a claim",
		file:  "ledger/claim.go",
		old:   `return cmp.Compare(cs[a].Entity, cs[b].Entity) })`,
		new:   `return cmp.Compare(a, b) })`,
		tests: "./ledger EachEntityIsClaimedOnce",
	}, {
		lacks: "the epoch that only rises",
		file:  "ledger/settle.go",
		old:   `    WHERE coalesce(l.epoch, 0) < coalesce(excluded.epoch, 0) OR`,
		new:   `    WHERE true OR`,
		tests: "./ledger LateCompletionOfALowerEpoch",
	}, {
		lacks: "the evidence of earlier attempts when one is absent",
		file:  "ledger/settle.go",
		old:   `CASE WHEN w.absent AND c.owner = $9 AND c.first_claimed_at = c.claimed_at THEN NULL`,
		new:   `CASE WHEN w.absent THEN NULL`,
		tests: "./ledger I4",
	}, {
		lacks: "the doubt after an attempt on a Once type",
		file:  "ledger/decide.go",
		old: `	case classOnce:
		return InDoubt`,
		new: `	case classOnce:
		return Retry`,
		tests: "./ledger Decide|I4",
	}, {
		lacks: "the horizon of a provider's key",
		file:  "ledger/decide.go",
		old:   `return now.Before(o.FirstClaimedAt.Add(t.Effect.duration - t.Timeout))`,
		new:   `return true`,
		tests: "./ledger Decide|Horizon",
	}, {
		lacks: "the fingerprint of the arguments",
		file:  "ledger/decide.go",
		old:   `return a != b && a != 0 && b != 0 && a>>56 == b>>56 }`,
		new:   `return false }`,
		tests: "./ledger Decide|I8",
	}, {
		lacks: "the record of late successes",
		file:  "ledger/settle.go",
		old:   `	if len(late) == 0 {`,
		new:   `	if true {`,
		tests: "./ledger LateCompletion",
	}, {
		lacks: "the claim before a Once effect",
		file:  "worker/claim.go",
		old:   `	return !k.Effect().MayRepeat() || k.Erased.FanOut`,
		new:   `	return k.Erased.FanOut`,
		tests: "./worker I1NoLossWhenWorkersAreKilled/Once",
	}, {
		lacks: "the claim of redelivered work",
		file:  "worker/claim.go",
		old:   `it.Received > 1 || it.Epoch`,
		new:   `it.Epoch`,
		tests: "./worker AClaimlessFailureThatMeetsTheClaimOfOtherWork",
	}, {
		lacks: "the return of what is not covered",
		file:  "worker/deliver.go",
		old:   `	if covered && (o.Owner == 0 || news) && st.Settling == 0 {`,
		new:   `	if covered {`,
		tests: "./worker AMessageThatComesBackBefore",
	}, {
		lacks: "the arguments of what stays open",
		file:  "worker/settle.go",
		old:   `				e.outcome.Args = string(it.raw)`,
		new:   `				e.outcome.Args = ""`,
		tests: "./worker ARerunOverASourceInGo",
	}, {
		lacks: "the message that carries a retry",
		file:  "worker/settle.go",
		old: `		if e.send != nil {
			sends`,
		new: `		if e.send != nil && false {
			sends`,
		tests: "./worker AFailingJobIsTriedAgain",
	}, {
		lacks: "the second try of a settlement",
		file:  "worker/settle.go",
		old:   `		if l.settling.Err() != nil || l.lease.Context().Err() != nil {`,
		new:   `		if true {`,
		tests: "./worker OutcomesThatCannotBeRecorded",
	}, {
		lacks: "the way round what somebody has locked",
		file:  "worker/settle.go",
		old:   `		if ledger.IsBusy(err) {`,
		new:   `		if false {`,
		tests: "./worker SomebodyHasLocked",
	}, {
		lacks: "the bound of a visit's and a tick's idling",
		file:  "worker/transact.go",
		old:   `	return pgx.BeginTxFunc(ctx, pool, bounded(time.Minute), f)`,
		new:   `	return pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{}, f)`,
		tests: "./worker TheServerEndsEach",
	}, {
		lacks: "the facts that make a run complete",
		file:  "worker/run.go",
		old:   `r.complete = r.notReady == 0 && r.failed == 0 && r.inDoubt == 0`,
		new:   `r.complete = true`,
		tests: "./worker I6",
	}, {
		lacks: "the fact as the lock of a transaction",
		file:  "worker/transact.go",
		old:   `		if held[i] {`,
		new:   `		if held[i] || true {`,
		tests: "./worker I3.*WhenTwoDeliveriesMeetAtTheFact",
	}, {
		lacks: "what could not be recorded stays in hand",
		file:  "worker/settle.go",
		old:   "	if err == nil {\n		l.letGo(items)",
		new:   "	if true {\n		l.letGo(items)",
		tests: "./worker WhatWasBegunAndCouldNotBeRecordedIsNoOrphan",
	}, {
		lacks: "a carrier for what was forced and is not ready",
		file:  "worker/deliver.go",
		old:   "it.Run != 0 || it.Epoch == 0 && !it.kind.Erased.Source.IsZero()",
		new:   "it.Run != 0 || !it.kind.Erased.Source.IsZero()",
		tests: "./worker ForcedWorkThatIsNotReadyComesAgain",
	}, {
		lacks: "the newest source in the second look",
		file:  "worker/deliver.go",
		old:   "	it.standing = standings[0]\n	it.raise()",
		new:   "	it.standing = standings[0]",
		tests: "./worker WhatWaitedForASlotIsDoneOfTheNewestSource",
	}, {
		lacks: "an end of a fan-out over a source without versions",
		file:  "worker/plan.go",
		old:   ">= coalesce(s.source_version, 0)`",
		new:   ">= s.source_version`",
		tests: "./worker AFanOutWhoseSourceHasNoVersionOfSomeRows",
	}, {
		lacks: "the refusal of a lent transaction's commit",
		file:  "worker/transact.go",
		old:   `func (guardedTx) Commit(context.Context) error   { return errLent }`,
		new:   `func (g guardedTx) Commit(ctx context.Context) error { return g.Tx.Commit(ctx) }`,
		tests: "./worker Lent",
	}, {
		lacks: "the lock number in an acknowledgement",
		file:  "queue/pgqueue/settle.go",
		old: `WHERE m.id = ANY ($1::bigint[]) AND m.lock = $2` + "`" + `

// Ack removes`,
		new: `WHERE m.id = ANY ($1::bigint[]) AND $2::bigint > 0` + "`" + `

// Ack removes`,
		tests: "./queue/pgqueue Conformance",
	}, {
		lacks: "the turnstile of a limit across the fleet",
		file:  "worker/fleet.go",
		old:   `WHERE f.job_type = $1 FOR UPDATE`,
		new:   `WHERE f.job_type = $1`,
		tests: "./worker OneDecisionAtATime",
	}, {
		lacks: "the permits of those who are not declared dead",
		file:  "worker/fleet.go",
		old:   `FROM others o WHERE NOT o.dead HAVING EXISTS`,
		new:   `FROM others o WHERE false HAVING EXISTS`,
		tests: "./worker PermitsOfADeadWorker",
	}, {
		lacks: "the end of the permits of the dead",
		file:  "worker/fleet.go",
		old:   `SELECT p.worker, p.bodies, w.dead_at IS NOT NULL AS dead`,
		new:   `SELECT p.worker, p.bodies, false AS dead`,
		tests: "./worker PermitsOfADeadWorker",
	}, {
		lacks: "the lock of whoever ticks a schedule",
		file:  "worker/tick.go",
		old:   `LIMIT 1 FOR UPDATE SKIP LOCKED`,
		new:   `LIMIT 1`,
		tests: "./worker TestI7OneTickOneRunOver",
	}, {
		lacks: "the question whether the last tick's work has ended",
		file:  "worker/tick_start.go",
		old:   `if p.LastStarted == nil {`,
		new:   `if true {`,
		tests: "./worker TestWhatTheLastTickStartedIsNotOvertaken",
	}, {
		lacks: "the rule of fixed times for the nights when the clock is set",
		file:  "jobs/cron/cron.go",
		old:   `	case s.fixed:`,
		new:   `	case s.fixed && false:`,
		tests: "./jobs/cron Tick|Nights",
	}, {
		lacks: "the new beginning of a schedule whose spec has changed",
		file:  "migrations/00007_schedules.sql",
		old:   `NEW.cursor := clock_timestamp();`,
		new:   `NEW.cursor := OLD.cursor;`,
		tests: "./worker TestWhatTheCodeDeclaresIsWhatTicks",
	}, {
		lacks: "the rule that a result is of whom the fact is of",
		file:  "ledger/result.go",
		old:   "                      AND ` + ownFactSQL + ` OFFSET 0) f",
		new:   `                      OFFSET 0) f`,
		tests: "./ledger Result",
	}, {
		lacks: "the epoch of a result",
		file:  "ledger/await.go",
		old:   `AND r.epoch = coalesce(l.epoch, 0) OFFSET 0) r`,
		new:   `OFFSET 0) r`,
		tests: "./ledger Await",
	}, {
		lacks: "a look of its own for a hint that comes during a look",
		file:  "ledger/room.go",
		old: `		w.due = now.Add(w.pause)
	}`,
		new: `		defer func() { go func() { time.Sleep(w.pause / 8); r.mu.Lock(); w.due = now.Add(w.pause); r.mu.Unlock() }() }()
		w.due = now.Add(w.pause)
	}`,
		tests: "./ledger AHintWakes",
	}, {
		lacks: "the look for the fact behind a wait at the row",
		file:  "ledger/transition.go",
		old:   `	case n == 0 && was == never:`,
		new:   `	case false:`,
		tests: "./ledger EveryInterleavingOfTwo/the_same,_at",
	}, {
		lacks: "the fact of a transition",
		file:  "ledger/transition.go",
		old:   `	case was == here:`,
		new:   `	case was != before:`,
		tests: "./ledger TransitionIsAppliedOnce",
	}, {
		lacks: "the version of a repeat",
		file:  "ledger/transition.go",
		old:   `WHEN l.source_version > $3 THEN EXISTS`,
		new:   `WHEN l.source_version > $3 THEN true OR EXISTS`,
		tests: "./ledger Loops",
	}, {
		lacks: "the order of names in what a fingerprint is of",
		file:  "jobs/fingerprint.go",
		old:   `	if !ordered {`,
		new:   `	if !ordered && leave != "" {`,
		tests: "./jobs Deploy|AnyOrder",
	}, {
		lacks: "the escapes in texts of named types",
		file:  "jobs/key.go",
		old:   `b.WriteString(ledger.KeyPart(partText(p)))`,
		new:   `b.WriteString(partText(p))`,
		tests: "./jobs DifferentParts",
	}, {
		lacks: "the end of a job over a conflict",
		file:  "jobs/outcome.go",
		old:   `errors.AsType[*ledger.ConflictError](err); ok {`,
		new:   `errors.AsType[*ledger.ConflictError](err); ok && false {`,
		tests: "./jobs Conflict",
	}, {
		lacks: "the end of a body whose message is lost",
		file:  "worker/inbox.go",
		old:   `			ctx.lose(ErrMessageLost)`,
		new:   `			_ = ctx`,
		tests: "./integration_test MessageIsLost",
	}, {
		lacks: "the wait of a group for what failed",
		file:  "worker/deliver.go",
		old: `	if it.inbox.fifo {
		it.end.hold = max(d, time.Millisecond)`,
		new: `	if false {
		it.end.hold = max(d, time.Millisecond)`,
		tests: "./integration_test WaitsForWhatFailed",
	}, {
		lacks: "the peace of a queue whose work cannot start",
		file:  "worker/inbox.go",
		old:   `if b.pg == nil && !b.useful(full) {`,
		new:   `if b.pg == nil && !b.useful(full) && false {`,
		tests: "./integration_test LeftInSQS",
	}, {
		lacks: "the new beginning of a group whose head has expired",
		file:  "queue/sqsqueue/settle.go",
		old:   `	q.releaseMates(ctx, lost)`,
		new:   `	_ = lost`,
		tests: "./queue/sqsqueue HeadHasExpired",
	}, {
		lacks: "the release of what the last poll brings",
		file:  "queue/sqsqueue/receive.go",
		old:   `p.closed || p.drains > 0 && p.wanted == 0 || `,
		new:   ``,
		tests: "./queue/sqsqueue Drain|Close",
	}, {
		lacks: "the version that counts in the sweep beside facts",
		file:  "ledger/claim.go",
		old:   `                  AND coalesce(l.version, 0) >= ($2::int[])[array_position($1::int[], c.job_type)]`,
		new:   `                  AND $2::int[] IS NOT NULL`,
		tests: "./ledger AFactOfAnOlderVersionSweepsNoFailureAway",
	}, {
		lacks: "the way of a run to what had failed",
		file:  "ledger/decide.go",
		old:   `o.Trouble == FailedFor && !newer && !o.calledBy(w):`,
		new:   `o.Trouble == FailedFor && !newer:`,
		tests: "./worker CallingAgainAfterAnOutage",
	}, {
		lacks: "the withdrawal of what had failed",
		file:  "worker/cancel.go",
		old:   `                    WHERE c.trouble IS DISTINCT FROM 'failed')`,
		new:   `                    )`,
		tests: "./worker TakesBackWhatHadFailed",
	}, {
		lacks: "the pause over what a recheck begins",
		file:  "worker/doubt.go",
		old:   `		holdSent(b, again)`,
		new:   ``,
		tests: "./worker BeginsNothingThatADoneCheck",
	},
}
