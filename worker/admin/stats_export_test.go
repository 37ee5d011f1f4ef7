package admin

const LiveSQL = liveSQL
