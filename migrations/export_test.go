package migrations

// For the tests, which cannot live in this package: pgtest imports it.
var (
	UpFrom  = up
	TryLock = sqlTryLock
)
