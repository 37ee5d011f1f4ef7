package ledgerhttp

import "strconv"

// For the tests, which live outside so that they use what users use.
var (
	KeyOf    = keyOf
	EntityOf = entityOf
	Tidy     = (*Keys).tidy
)

const (
	ExpireSQL     = expireSQL
	StretchPages  = stretchPages
	StretchesEach = stretchesEach
)

// Problems are the names of all problems, with their status.
func Problems() map[string]string {
	all := map[string]string{}
	for _, p := range []problem{keyMissing, keyInvalid, keyReused, ongoing, outcomeUnknown, expired, gone, unfinished, unknown, tooLarge, unreadable, consumed, unidentified, unstorable, aborted, unkept, unavailable} {
		all[p.slug] = strconv.Itoa(p.status)
	}
	return all
}
