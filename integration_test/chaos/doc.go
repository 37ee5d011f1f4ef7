// Package chaos holds what is promised in hostile surroundings, each promise as a test that
// tells one story: the database is restarted, killed or full; a worker is frozen, killed by
// its own work, or does not listen; the pool is too small, a pooler stands in front, the
// clocks are wrong, an old snapshot is held, other services share the queue.
//
// The workers are processes of their own (the test binary runs itself), and their effects
// go to a file, so that there is an outside world that outlives the database and does not
// roll back. What a piece of work does there, and to its process, is said in its
// arguments. Each story ends by comparing the ledger with that file.
//
// Stories that restart a server, or fill its disk, have a server of their own. They need
// Linux: they mount, limit memory, and read /proc.
package chaos
