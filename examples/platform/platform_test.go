package main

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestAWorkerStartsWithItsEnvironmentAndNothingElse(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		at := func(name string, vars ...string) *place {
			p := &place{name: name, vars: map[string]string{}, Known: strings.Join(vars, " "), Done: greetings}
			for _, v := range vars {
				p.vars[v] = "something"
			}
			return p
		}
		p := &proof{[]*place{at("DATABASE_URL", "DATABASE_URL"), at("PG*", "PGHOST", "PGPASSWORD"), at("VCAP_SERVICES", "VCAP_SERVICES")}}
		p.Places[2].InSQS = greetings
		return p
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a place left out":        func(p *proof) { p.Places = p.Places[:2] },
		"one not done":            func(p *proof) { p.Places[0].Done-- },
		"nothing through SQS":     func(p *proof) { p.Places[2].InSQS = 0 },
		"a message left":          func(p *proof) { p.Places[2].Left++ },
		"a variable more":         func(p *proof) { p.Places[1].Known += " HOME" },
		"a worker without any":    func(p *proof) { p.Places[1].Known = "" },
		"the variables of others": func(p *proof) { p.Places[1].Known = "DATABASE_URL" },
	})
}

func TestADocumentIsSaidInVariables(t *testing.T) {
	for _, test := range []struct {
		what, document string
		want           map[string]string
	}{
		{"nothing is bound", `{}`, map[string]string{}},
		{"a database by its URI", `{"postgres": [{"name": "db", "credentials": {"uri": "postgresql://u:p@h:5432/d"}}]}`,
			map[string]string{"DATABASE_URL": "postgresql://u:p@h:5432/d"}},
		{"a database in parts, with what must be escaped", `{"aws-rds": [{"name": "db", "tags": ["database", "postgresql"],
			"credentials": {"host": "db.example", "port": "5433", "db_name": "ledger", "username": "u", "password": "a/b@c:d"}}]}`,
			map[string]string{"DATABASE_URL": "postgres://u:a%2Fb%40c%3Ad@db.example:5433/ledger"}},
		{"a port as a number, and none", `{"pg": [{"name": "db", "tags": ["postgres"], "credentials": {"hostname": "h", "port": 6432, "name": "d", "username": "u", "password": "p"}}]}`,
			map[string]string{"DATABASE_URL": "postgres://u:p@h:6432/d"}},
		{"a database of another kind", `{"mysql": [{"name": "db", "tags": ["mysql"], "credentials": {"uri": "mysql://u:p@h/d", "hostname": "h"}}]}`, map[string]string{}},
		{"a queue", `{"csb-aws-sqs": [{"name": "q", "credentials": {"queue_url": "https://sqs.eu-west-1.amazonaws.com/1/q", "region": "eu-west-1", "access_key_id": "A", "secret_access_key": "S"}}]}`,
			map[string]string{"SQS_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/1/q", "AWS_ENDPOINT_URL_SQS": "https://sqs.eu-west-1.amazonaws.com",
				"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "S"}},
	} {
		nothing(t)
		got, err := bound(test.document)
		if err != nil || !maps.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", test.what, got, err)
		}
	}
}

func TestAMistakeIsToldWithoutAPassword(t *testing.T) {
	for what, document := range map[string]string{
		"not JSON":      `{"pg": [{"credentials": {"uri": "postgres://u:geheim@h/d"}}`,
		"two databases": `{"pg": [{"name": "b", "credentials": {"uri": "postgres://u:geheim@h/d"}}, {"name": "a", "credentials": {"uri": "postgres://u:geheim@h/e"}}]}`,
		"a strange URL": `{"sqs": [{"name": "q", "credentials": {"queue_url": "//", "secret_access_key": "geheim"}}]}`,
		"a bad address": `{"pg": [{"name": "db", "credentials": {"uri": "postgres://u:geheim@h:port/d"}}]}`,
		"a number":      `{"pg": [{"credentials": {"uri": 5, "password": "geheim"}}]}`,
	} {
		nothing(t)
		t.Setenv("VCAP_SERVICES", document)
		if _, err := fromEnvironment(); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWhoeverRunsTheProgramHasTheLastWord(t *testing.T) {
	nothing(t)
	t.Setenv("VCAP_SERVICES", `{"pg": [{"name": "db", "credentials": {"uri": "postgres://u:p@bound/d"}}]}`)
	is, err := fromEnvironment()
	if err != nil || is.Database.ConnConfig.Host != "bound" || is.Queue != "" {
		t.Errorf("%+v, %v", is, err)
	}
	t.Setenv("DATABASE_URL", "postgres://u:p@said/d")
	if is, err = fromEnvironment(); err != nil || is.Database.ConnConfig.Host != "said" {
		t.Errorf("%+v, %v", is, err)
	}
	nothing(t)
	t.Setenv("PGHOST", "pghost")
	if is, err = fromEnvironment(); err != nil || is.Database.ConnConfig.Host != "pghost" {
		t.Errorf("%+v, %v", is, err)
	}
	nothing(t)
	if _, err = fromEnvironment(); err == nil {
		t.Error("a worker without a database started")
	}
}

// A password of one service beside the address of another is a program that does not start, or
// works in the wrong place.
func TestAServiceIsNamedByVariablesOrByTheDocumentAndNotByHalfOfEach(t *testing.T) {
	const document = `{"pg": [{"name": "db", "credentials": {"uri": "postgres://u:p@bound/d"}}],
		"sqs": [{"name": "q", "credentials": {"queue_url": "https://sqs.bound/1/q", "region": "bound", "access_key_id": "bound", "secret_access_key": "bound"}}]}`
	for _, set := range []map[string]string{
		{"PGHOST": "said"},
		{"PGHOST": "said", "PGUSER": "said", "PGPASSWORD": "said"},
		{"DATABASE_URL": "postgres://said:said@said/said"},
		{"SQS_QUEUE_URL": "https://sqs.said/1/q"},
		{"SQS_QUEUE_URL": "https://sqs.said/1/q", "AWS_ACCESS_KEY_ID": "said", "AWS_SECRET_ACCESS_KEY": "said"},
		{"SQS_QUEUE_URL": "https://sqs.said/1/q", "DATABASE_URL": "postgres://said:said@said/said"},
	} {
		nothing(t)
		t.Setenv("VCAP_SERVICES", document)
		for name, value := range set {
			t.Setenv(name, value)
		}
		is, err := fromEnvironment()
		if err != nil {
			t.Errorf("%v: %v", set, err)
			continue
		}
		database, queue := "bound", "bound"
		if set["PGHOST"] != "" || set["DATABASE_URL"] != "" {
			database = "said"
		}
		if set["SQS_QUEUE_URL"] != "" {
			queue = "said"
		}
		if host := is.Database.ConnConfig.Host; host != database {
			t.Errorf("%v: the database is at %s", set, host)
		}
		for _, name := range slices.Concat(sqs.names, sqs.others) {
			if value := os.Getenv(name); queue == "said" && value != set[name] || queue == "bound" && name != "AWS_SESSION_TOKEN" && !strings.Contains(value, "bound") {
				t.Errorf("%v: %s is %s", set, name, value)
			}
		}
	}
}

// A key without a queue, and a queue that is bound: nobody knows whether they belong together.
func TestAServiceThatIsHalfNamedIsAMistake(t *testing.T) {
	for _, name := range slices.Concat(database.others, sqs.others) {
		nothing(t)
		t.Setenv("VCAP_SERVICES", `{"pg": [{"name": "db", "credentials": {"uri": "postgres://u:p@bound/d"}}], "sqs": [{"name": "q", "credentials": {"queue_url": "https://sqs.bound/1/q"}}]}`)
		t.Setenv(name, "said")
		if _, err := fromEnvironment(); err == nil || !strings.Contains(err.Error(), name+" is set") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is wrong with a service that nobody asks for is nobody's mistake.
func TestOfTwoDatabasesThatAreBoundTheVariableChooses(t *testing.T) {
	nothing(t)
	t.Setenv("VCAP_SERVICES", `{"pg": [{"name": "b", "credentials": {"uri": "postgres://u:p@h/d"}}, {"name": "a", "credentials": {"uri": "postgres://u:p@h/e"}}]}`)
	if _, err := fromEnvironment(); err == nil || !strings.Contains(err.Error(), "set it yourself") {
		t.Fatal(err)
	}
	t.Setenv("DATABASE_URL", "postgres://u:p@said/d")
	if is, err := fromEnvironment(); err != nil || is.Database.ConnConfig.Host != "said" {
		t.Errorf("%+v, %v", is, err)
	}
}

// nothing is an environment that says nothing, until the test ends.
func nothing(t *testing.T) {
	for _, name := range slices.Concat([]string{"VCAP_SERVICES"}, database.names, database.others, sqs.names, sqs.others) {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
}
