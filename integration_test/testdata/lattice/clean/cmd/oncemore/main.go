package main

import _ "log"
