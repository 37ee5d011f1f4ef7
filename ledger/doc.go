// Package ledger knows whether it happened.
//
// It keeps, for ever, which work was completed, and who may work on what is not. Work is
// named by its identity, (job type, entity). Two tables give an entity three places:
//
//	missing   in neither table: nobody has set out to do it
//	open      in oncemore.claim: held by a worker, or left for another attempt, a failure, in doubt
//	done      in oncemore.ledger: the fact, with when, what and how the ledger knows
//
//	claim(job_type, entity, fence, owner, claimed_at, first_claimed_at, not_before, attempts,
//	      trouble, fingerprint, epoch, source_version, run, args, error)
//	ledger(job_type, entity, completed_at, fingerprint, epoch, version, source_version, run,
//	      attempts, evidence)
//
// The sentence that always holds: per (job type, entity, epoch) at most one completion is
// recorded, by who deleted the current claim by its fence, or, where no claim is needed, by
// who inserted the fact first; and the same statement does both. So an entity is never
// seen in neither place on its way from open to done. (While done work is done again it is
// in both: the old fact stands until a fact of a higher epoch replaces it, and then goes
// to oncemore.ledger_history.)
//
// An application calls [Ledger.Register], [Record], [Transition], [Ledger.Await] and [EffectKey]. The
// rest is the engine's, for the packages worker and ledgerhttp, and may change with them.
//
// # Ways between the places
//
//	missing → open    Claim inserts; Settle does, for a first delivery without a claim that did not complete
//	open → open       Claim takes over; Settle and Resolve leave it retrying, failed or in doubt
//	open → done       Settle, Hold or Resolve: the claim goes by its fence, the fact comes, one statement
//	missing → done    Settle, Hold or Record: the first insert of the fact
//	open → missing    Settle with Ended (work that is never a fact); Claim, giving back what turned out done
//	done → done       a completion under a higher epoch; done never becomes anything else
//
// Every change of a claim draws a new fence from one sequence, so that comparing the fence
// compares the row. Everybody decides on what a [Ledger.Look] showed, by [Decide] and
// nothing else, and whatever is then changed names the fence that was seen. Who was
// outrun changes nothing, and looks again.
//
// A claim is evidence that somebody set out, so it is committed before the work begins.
// It stays until a completion, a resolution, or word that the effect surely did not happen;
// first_claimed_at is since when there is any. Of a claim that nobody holds, claimed_at is
// when the last attempt ended that may have had an effect. What it means that an attempt ended in
// anything but success is what an [Effect] declares.
//
// A claim is taken over when its owner is dead, which is when the worker's row says so,
// and not when time has passed. See [Lease].
//
// # Results and transitions
//
// What work returned may be stored beside its fact, in the same transaction and only with
// the fact:
//
//	result(job_type, entity, epoch, value, stored_at, expires_at)
//
// It is of the fact that has its epoch, and may expire; the fact does not. [Ledger.Await]
// waits for a fact and returns its result.
//
// A [Transition] is work on (entity, from, to) whose effect is an update of the app's own row.
//
// # Epochs and staleness
//
// An epoch is a number from a sequence that forced work carries; a fact of a lower one does
// not satisfy it. Work is also wanted again when its source has a greater version than
// the fact, or, where the effect may repeat, the code has. Such stale work draws a new
// epoch when it is claimed, since a fact is only ever replaced by a higher one. The
// effect key that a provider sees is made from the epoch: the same for every repeat,
// another one for work that was asked for anew.
//
// # Two workers
//
// Everything that two workers, A and B, can do to one entity, and the test that plays it.
// The steps: look, claim by insert, take over, the second look (inside Claim), insert the
// fact without a claim, complete, fail, resolve, declare dead; and late, forced, stale or
// unanswered ones of these. Where B is outrun it looks again and finds what is said.
//
//	A                               B meanwhile                     outcome
//
//	look: missing                   look: missing, claim            B has it; A's insert does nothing: ongoing
//	                                                                TestClaimAfterAnotherClaim
//	claim, not committed            claim                           B waits for A's commit and is outrun; after a rollback B wins
//	                                                                TestClaimDuringAnotherClaim
//	look: missing                   claim, complete                 A's insert succeeds, its second look sees the fact and drops it: done
//	                                                                TestClaimAfterACompletion
//	look: stale source              claim, complete (that source)   A's second look sees that this fact is enough and drops it, though A's epoch is higher: done
//	                                                                TestClaimOfStaleWorkAfterAnotherCompletion
//	look: missing, wants source 9   Record of source 5              A's epoch cannot replace the fact: dropped; A claims anew under a higher epoch
//	                                                                TestClaimOfANewerSourceAfterAnAdoption
//	claim, source 9; complete       Record of source 5 between      A's completion replaces B's fact, under an epoch drawn for it
//	                                                                TestCompletionOfANewerSourceAfterAnAdoption
//	complete                        look                            B sees ongoing or done, and never missing
//	                                                                TestLookDuringACompletion
//	complete, not committed         look: missing; claim            B's insert waits; its second look sees the fact, and drops the claim
//	                                                                TestClaimDuringACompletion
//	complete, frozen before commit  claim, others beside it         B is busy when its patience ends, and has claimed nothing; its next look says ongoing
//	                                                                TestClaimIsBusyWhenACompletionIsFrozen
//	insert fact, not committed      insert fact                     B waits; A commits: not B's; A rolls back: B's
//	                                                                TestHoldDuringAnotherHold
//	insert fact                     insert fact, by Settle          B's settlement fails whole; B looks, takes out what is done, and settles the rest
//	                                                                TestAFactThatSomebodyElseRecordedDoesNotFailItsNeighbours
//	insert fact, frozen             insert fact                     B is busy when its patience ends, and A's commit stands
//	                                                                TestHoldIsBusyWhenPatienceEnds
//	insert fact, not committed      claim, complete                 B's second look cannot see A's fact; whoever commits first is the completion
//	                                                                TestI3InTransactionEffectsHappenOnceWhenAClaimMeetsAFirstDelivery
//	insert fact                     fail, without a claim           B's claim lies beside the fact, is outranked and swept: done
//	                                                                TestClaimlessFailureAfterACompletion
//	insert fact                     fail, other args, without one   B's claim lies beside the fact, and stays listed as failed
//	                                                                TestI8AFactOfOtherArgumentsSweepsNothingAwayThatIsListed
//	claim                           fail, without a claim           B is refused, A's claim stays as it is: ongoing
//	                                                                TestClaimlessFailureDuringAClaim
//	claim, source 5                 fail, source 9, without a claim B is refused and looks again: ongoing, then stale
//	                                                                TestClaimlessFailureOfANewerSourceDuringAClaim
//	fail, without a claim           fail, other args, without one   B is refused and looks again: a conflict
//	                                                                TestClaimlessFailureAfterAnotherClaimlessFailure
//	claim                           Record                          the app's fact stands; A's completion only removes its claim
//	                                                                TestCompletionAfterAnAdoption
//	claim, not committed            Record; look by C               C may see the fact before A's claim; else as above
//	                                                                TestAFirstFactMayComeBetweenTheSecondLookOfAClaimAndItsCommit
//	declared dead                   take over                       B has it, by the way of any other retry
//	                                                                TestI10RecoveryIsTheNormalPath
//	declared dead, effect Once      look                            in doubt; nobody takes over; an operator resolves it
//	                                                                TestResolveSettlesWhatADeadWorkerLeft
//	not renewed, not declared dead  look                            ongoing, however long its lease is over
//	                                                                TestATakeoverNeedsADeclaredDeath
//	declared dead                   look, take over; so does C      one of them has it
//	                                                                TestTakeoverAfterAnotherTakeover
//	declared dead, late completion  look before, take over after    A's completion stands, its fence was current; B's takeover does nothing: done
//	                                                                TestTakeoverAfterALateCompletion
//	declared dead, late completion  take over before                A is refused and recorded as disputed; B completes
//	                                                                TestLateCompletionByAFencedWorker
//	declared dead, late failure     take over before                A is refused, B's claim stays as it is
//	                                                                TestLateFailureByAFencedWorker
//	completing, not committed       take over                       B does not wait: it skips the locked row and is outrun
//	                                                                TestTakeoverDoesNotWaitForAFrozenTransaction
//	claim of source 9, dead         take over for source 5          the claim stands for 5; who wants 9 waits, then finds the fact stale
//	                                                                TestATakeoverStandsForWhatItsHolderDoes
//	claim of source 5, dead         take over for source 6          under a new epoch, so that no provider takes it for A's repeat
//	                                                                TestI4NoBlindRepeatANewerSourceHasAKeyOfItsOwn
//	fail, and the fact is there     sweep, then look                B's sweep takes the claim that it saw; a changed one stays
//	                                                                TestAFactOutranksAClaimThatNobodyHoldsAndSweepsItAway
//	late renewal                    declare dead                    exactly one of them happens, by the lock on A's row
//	                                                                TestOfALateRenewalAndADeclarationExactlyOneHappens
//	fail                            look before, take over after    the fence has changed: outrun; then waiting, and a retry when it is due
//	                                                                TestTakeoverAfterAFailure
//	resolve                         resolve                         one of them; the other gets ErrChanged
//	                                                                TestResolveAfterAnotherResolve
//	resolve: not done               take over                       B makes the next attempt; before A's commit B is in doubt still
//	                                                                TestTakeoverAfterAResolve
//	resolve                         late completion before          A gets ErrChanged; B's completion stands
//	                                                                TestResolveAfterALateCompletion
//	resolve: done, or not done      late completion after           B is refused and recorded as disputed
//	                                                                TestLateCompletionAfterAResolve
//	claim                           forced                          ongoing; forced when A has completed, and A's fact is archived
//	                                                                TestForcedDuringAClaim
//	forced, epoch 7                 forced, epoch 8, completes      A finds a fact of a higher epoch: done
//	                                                                TestForcedAfterAHigherEpoch
//	forced, completes               insert fact, or complete, late  the fact of the higher epoch stays
//	                                                                TestLateCompletionOfALowerEpoch
//	complete, reply lost            –                               settled again, A recognizes its own fact
//	                                                                TestLostReplyToACompletion
//	complete, reply lost            declares A dead, looks          done; A, settling again, cannot tell and records it as disputed
//	                                                                TestLostReplyToACompletionOfADeadWorker
//	insert fact, reply lost         –                               settled again, nothing changes
//	                                                                TestLostReplyToAClaimlessCompletion
//	claim, reply lost               look                            ongoing for B; A itself, when it looks, knows that nobody of its own has it, and takes it over
//	                                                                TestLostReplyToAClaim
//	fail, reply lost                take over                       settled again, A is refused, B's claim stays as it is
//	                                                                TestLostReplyToAFailure
package ledger
