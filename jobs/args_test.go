package jobs_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Arguments of the greatest length that a queue takes must not grow past it when only their version
// is changed.
func TestArgumentsDoNotGrowWhenTheirVersionIsRaised(t *testing.T) {
	got, err := jobs.AtSource([]byte(`{"n":1,"source_version":3,"text":"<a> & b"}`), 4)
	if want := `{"n":1,"source_version":4,"text":"<a> & b"}`; err != nil || string(got) != want {
		t.Errorf("%s %v, want %s", got, err, want)
	}
}
