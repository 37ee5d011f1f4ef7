//go:build !oncemore

package main

import (
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
)

func newOurs(*pgxpool.Pool) (side, error) {
	return nil, errors.New("built without our side: use -tags oncemore")
}
