#!/bin/sh
# Make the queue of pubsub.yaml:  sh pubsub.sh PROJECT https://s2composite-HASH-ew.a.run.app
set -eu
project=$1 url=$2
pusher=pubsub@$project.iam.gserviceaccount.com
gcloud --project="$project" iam service-accounts create pubsub
gcloud --project="$project" pubsub topics create s2composite s2composite-dead
gcloud --project="$project" pubsub subscriptions create s2composite-dead --topic=s2composite-dead \
    --message-retention-duration=7d
gcloud --project="$project" pubsub subscriptions create s2composite --topic=s2composite --ack-deadline=600 \
    --push-endpoint="$url/median" --push-auth-service-account="$pusher" --push-auth-token-audience=https://s2composite \
    --min-retry-delay=10s --max-retry-delay=600s \
    --max-delivery-attempts=50 --dead-letter-topic=s2composite-dead
