package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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
// a document has it said in these variables first. What is set already stays as it is, so that
// whoever runs the program has the last word.
func fromEnvironment() (settings, error) {
	if document := os.Getenv("VCAP_SERVICES"); document != "" {
		variables, err := bound(document)
		if err != nil {
			return settings{}, fmt.Errorf("read VCAP_SERVICES: %w", err)
		}
		for name, value := range variables {
			if os.Getenv(name) == "" {
				if err := os.Setenv(name, value); err != nil {
					return settings{}, fmt.Errorf("set %s: %w", name, err)
				}
			}
		}
	}
	if os.Getenv("DATABASE_URL") == "" && os.Getenv("PGHOST") == "" && os.Getenv("PGSERVICE") == "" {
		return settings{}, errors.New("no database is named: set DATABASE_URL, or PGHOST and its kin, or bind a service of PostgreSQL")
	}
	db, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL")) // what that does not say is read from PG*
	if err != nil {
		return settings{}, fmt.Errorf("read the database's address: %w", err) // pgx leaves the password out
	}
	return settings{Database: db, Queue: os.Getenv("SQS_QUEUE_URL")}, nil
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

// bound says in variables what the document says of a database and of a queue.
func bound(document string) (map[string]string, error) {
	var labels map[string][]service
	if err := json.Unmarshal([]byte(document), &labels); err != nil {
		return nil, errors.New("it is not the JSON of bound services") // the error may quote a password
	}
	variables, by := map[string]string{}, map[string]string{}
	set := func(s service, name, value string) error {
		if other, ok := by[name]; ok && value != variables[name] {
			return fmt.Errorf("services %q and %q both give %s: set it yourself", min(other, s.Name), max(other, s.Name), name)
		}
		variables[name], by[name] = value, s.Name
		return nil
	}
	for _, services := range labels {
		for _, s := range services {
			var errs []error
			if address := s.postgres(); address != "" {
				errs = append(errs, set(s, "DATABASE_URL", address))
			}
			if c := s.Credentials; c.QueueURL != "" {
				u, err := url.Parse(c.QueueURL)
				if err != nil || u.Host == "" {
					return nil, fmt.Errorf("service %q: queue_url is no URL", s.Name)
				}
				endpoint := url.URL{Scheme: u.Scheme, Host: u.Host} // the queue's URL says where SQS is
				errs = append(errs, set(s, "SQS_QUEUE_URL", c.QueueURL), set(s, "AWS_ENDPOINT_URL_SQS", endpoint.String()),
					set(s, "AWS_REGION", c.Region), set(s, "AWS_ACCESS_KEY_ID", c.AccessKeyID), set(s, "AWS_SECRET_ACCESS_KEY", c.SecretAccessKey))
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
