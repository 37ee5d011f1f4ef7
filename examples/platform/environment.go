package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Settings are all that differs between one place where the program runs and another.
type settings struct {
	Database *pgxpool.Config
	Queue    string // URL or name of one in SQS; empty: the Postgres queue alone
}

// fromEnvironment reads the settings. There is one way: the variables that the libraries below
// read for themselves (DATABASE_URL or PG*, AWS_*), and SQS_QUEUE_URL. A platform that says it in
// a document has it said in these variables first, but for a service that a variable names
// already: whoever sets one has the last word on it.
func fromEnvironment() (settings, error) {
	if document := os.Getenv("VCAP_SERVICES"); document != "" {
		variables, err := bound(document)
		if err != nil {
			return settings{}, fmt.Errorf("read VCAP_SERVICES: %w", err)
		}
		for name, value := range variables {
			if err := os.Setenv(name, value); err != nil {
				return settings{}, fmt.Errorf("set %s: %w", name, err)
			}
		}
	}
	if !slices.ContainsFunc(database.names, isSet) {
		return settings{}, errors.New("no database is named: set DATABASE_URL, or PGHOST and its kin, or bind a service of PostgreSQL")
	}
	db, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL")) // what that does not say is read from PG*
	if err != nil {
		return settings{}, fmt.Errorf("read the database's address: %w", err) // pgx leaves the password out
	}
	return settings{Database: db, Queue: os.Getenv("SQS_QUEUE_URL")}, nil
}

// A group is of variables that say one thing together, so one place says them all: a password
// from the document has no business at an address from a variable.
type group struct{ names, others []string }

var (
	database = group{[]string{"DATABASE_URL", "PGHOST", "PGSERVICE"}, []string{"PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD"}}
	sqs      = group{[]string{"SQS_QUEUE_URL"}, []string{"AWS_ENDPOINT_URL_SQS", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}}
)

func isSet(name string) bool { return os.Getenv(name) != "" }

// free tells whether the document is to say it.
func (g group) free() (bool, error) {
	if slices.ContainsFunc(g.names, isSet) {
		return false, nil
	}
	if i := slices.IndexFunc(g.others, isSet); i >= 0 {
		return false, fmt.Errorf("%s is set, but not %s: set all that the service needs, or nothing of it", g.others[i], strings.Join(g.names, " or "))
	}
	return true, nil
}

// A service is one that Cloud Foundry has bound to the application. Its credentials are what its
// broker likes; these are the usual names.
type service struct {
	Name        string   `json:"name"`
	Tags        []string `json:"tags"`
	Credentials struct {
		URI      string      `json:"uri"`
		Hostname string      `json:"hostname"`
		Host     string      `json:"host"`
		Port     json.Number `json:"port"` // some write it in quotes
		Database string      `json:"name"`
		DBName   string      `json:"db_name"`
		Username string      `json:"username"`
		Password string      `json:"password"`

		QueueURL        string `json:"queue_url"`
		Region          string `json:"region"`
		AccessKeyID     string `json:"access_key_id"`
		SecretAccessKey string `json:"secret_access_key"`
	} `json:"credentials"`
}

// bound says in variables what the document says of a database and of a queue that no variable
// names.
func bound(document string) (map[string]string, error) {
	var labels map[string][]service
	if err := json.Unmarshal([]byte(document), &labels); err != nil {
		return nil, errors.New("it is not the JSON of bound services") // the error may quote a password
	}
	type offer struct {
		by   string
		says map[string]string
	}
	variables, offers := map[string]string{}, map[string]offer{}
	give := func(g group, s service, says map[string]string) error {
		free, err := g.free()
		if !free {
			return err
		}
		name := g.names[0]
		if other, ok := offers[name]; ok && !maps.Equal(says, other.says) {
			return fmt.Errorf("services %q and %q both give %s: set it yourself", min(other.by, s.Name), max(other.by, s.Name), name)
		}
		offers[name] = offer{s.Name, says}
		maps.Copy(variables, says)
		return nil
	}
	for _, services := range labels {
		for _, s := range services {
			var errs []error
			if address := s.postgres(); address != "" {
				errs = append(errs, give(database, s, map[string]string{"DATABASE_URL": address}))
			}
			if c := s.Credentials; c.QueueURL != "" {
				u, err := url.Parse(c.QueueURL)
				if err != nil || u.Host == "" {
					return nil, fmt.Errorf("service %q: queue_url is no URL", s.Name)
				}
				endpoint := url.URL{Scheme: u.Scheme, Host: u.Host} // the queue's URL says where SQS is
				errs = append(errs, give(sqs, s, map[string]string{"SQS_QUEUE_URL": c.QueueURL, "AWS_ENDPOINT_URL_SQS": endpoint.String(),
					"AWS_REGION": c.Region, "AWS_ACCESS_KEY_ID": c.AccessKeyID, "AWS_SECRET_ACCESS_KEY": c.SecretAccessKey}))
			}
			if err := errors.Join(errs...); err != nil {
				return nil, err
			}
		}
	}
	return variables, nil
}

// postgres is the address of the database that s is; empty: it is something else.
func (s service) postgres() string {
	c := s.Credentials
	if strings.HasPrefix(c.URI, "postgres://") || strings.HasPrefix(c.URI, "postgresql://") {
		return c.URI
	}
	host := cmp.Or(c.Hostname, c.Host)
	if c.URI != "" || host == "" || !slices.Contains(s.Tags, "postgresql") && !slices.Contains(s.Tags, "postgres") {
		return ""
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(c.Username, c.Password), // which escapes them
		Host: net.JoinHostPort(host, cmp.Or(c.Port.String(), "5432")), Path: "/" + cmp.Or(c.DBName, c.Database)}
	return u.String()
}
