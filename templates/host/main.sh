# How the script is called by itself: as a supervisor, and as what goes back.

case ${1:-} in
  supervise) supervise ;;
  deadline|boot) guard "$1" ;;
  wait_for_deadline) wait_for_deadline "$2" ;;
esac
