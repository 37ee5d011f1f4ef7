package migrations

import "time"

// For the tests, which cannot live in this package: pgtest imports it.
var (
	UpFrom  = up
	TryLock = sqlTryLock
)

// SetAliveEvery returns what it was.
func SetAliveEvery(d time.Duration) (was time.Duration) {
	was, aliveEvery = aliveEvery, d
	return was
}
